"""The case study of docs/case-study.md: SmolLM2-135M through RLVR, SFT and contrastive training.

    PYTHONPATH=tools python -m smollm2 STAGE --work FOLDER

Every stage goes on where it was stopped; see `python -m smollm2 --help`.
"""

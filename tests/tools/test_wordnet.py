from pathlib import Path

from tiny.wordnet import parse_line, read_licence, read_synsets

NOUN = (
    "00976953 04 n 02 foray 0 sudden_raid 0 003 @ 00975452 n 0000 + 02020255 v 0301 "
    '~ 00974111 n 0000 | a sudden short attack; "they made a foray"; "a raid"  '
)
SATELLITE = "00908143 00 s 01 ingratiating(p) 0 001 & 00907661 a 0000 | calculated to please  "
HEAD = "00907661 00 a 01 pleasing 0 002 & 00908143 a 0000 ! 00908500 a 0101 | giving pleasure  "
VERB = "00204872 30 v 01 lose 2 001 $ 00204750 v 0000 03 + 01 00 + 02 00 | be at a disadvantage  "


def test_noun_line_gives_words_gloss_examples_and_parent() -> None:
    synset = parse_line(NOUN, "noun")
    assert synset.key == "n00976953"
    assert synset.lemmas == ("foray", "sudden raid")
    assert synset.gloss == "a sudden short attack"
    assert synset.examples == ("they made a foray", "a raid")
    assert synset.group == "n00975452"


def test_satellite_and_head_adjectives_share_the_group_of_the_head() -> None:
    satellite, head = parse_line(SATELLITE, "adjective"), parse_line(HEAD, "adjective")
    assert satellite.lemmas == ("ingratiating",)
    assert satellite.group == head.group == head.key == "a00907661"


def test_synset_without_hypernym_is_its_own_group() -> None:
    synset = parse_line(VERB, "verb")
    assert synset.parent is None
    assert synset.group == synset.key == "v00204872"


def test_reader_skips_the_notice_and_returns_it_separately(tmp_path: Path) -> None:
    notice = "  1 This database is provided  \n  2 under a license.  \n"
    for name, line in [("noun", NOUN), ("verb", VERB), ("adj", HEAD), ("adv", "")]:
        (tmp_path / f"data.{name}").write_text(notice + line + "\n" * bool(line))
    assert [synset.key for synset in read_synsets(tmp_path)] == [
        "n00976953",
        "v00204872",
        "a00907661",
    ]
    assert read_licence(tmp_path) == "This database is provided\nunder a license.\n"

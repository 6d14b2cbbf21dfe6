from tiny import card


def test_similarity_section_survives_a_new_rendering() -> None:
    section = f"{card.BEGIN}\n| CKA | 0.9 |\n{card.END}\n\nWhat holds."
    assert card.similarity_section(f"before\n{section}\n\n## Rebuilding\nafter") == section


def test_first_card_has_an_empty_marked_place() -> None:
    assert card.similarity_section("") == f"{card.BEGIN}\n{card.END}"

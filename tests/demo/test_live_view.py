"""The picture in the documents shows what the program writes."""

from pathlib import Path

from demo.live_view import draw

PICTURE = Path(__file__).parents[2] / "docs" / "live-view.svg"


def test_the_picture_is_current() -> None:
    drawn = draw()
    assert "round&#160;3&#160;of&#160;10" in drawn
    assert drawn == PICTURE.read_text(), "run scripts/live-view"

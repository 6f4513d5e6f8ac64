"""Examples of other tasks as a person reads them."""

from io import BytesIO

from PIL import Image

from flexlora_client.training.data.examples import Chat, Example, Pictured, Prompted, Scored, Tagged, Turn
from flexlora_client.training.encoding.encoder import Encoder
from flexlora_client.training.encoding.preview import show
from flexlora_client.training.encoding.survey import survey
from tests.support.chat_templates import QWEN3, chatml_tokenizer
from tests.support.tiny_models import LABELS, make_tokenizer


def read(encoder: Encoder, example: Example) -> str:
    (row,) = show(encoder, example, LABELS).rows
    return "".join(f"[{piece.text}]" if piece.learned else piece.text for piece in row.pieces)


def test_examples_as_text_with_what_is_learned() -> None:
    encoder = Encoder(make_tokenizer(), 64)
    file = BytesIO()
    Image.new("RGB", (4, 3)).save(file, "PNG")
    assert read(encoder, Pictured(file.getvalue(), 1)) == "PNG image of 4 x 3 [fish]"
    assert read(encoder, Scored("ab", (0.0, 1.0, 0.5))) == "<s>ab [bird 0, fish 1, tree 0.5]"
    assert read(encoder, Tagged(("a", "b"), (2, 0))) == "<s> [tree]a [bird]b"
    assert read(Encoder(make_tokenizer(), 64, seq2seq=True), Prompted("a", "b")) == "<s>a\n[<s>b</s>]"


def test_an_example_of_several_sequences() -> None:
    encoder = Encoder(chatml_tokenizer(QWEN3), 100)
    chat = Chat(tuple(Turn(role, role[0] * 9) for role in ("user", "assistant") * 2))
    shown = show(encoder, chat, ())
    assert len(shown.rows) == 2
    assert "2 sequences" in shown.summary
    found = survey(encoder, [chat, chat])
    assert found.examples == 2
    assert found.learned == 2 * shown.weight
    assert found.tokens == 2 * sum(len(row.ids) for row in shown.rows)

"""Draw the README's first picture, `examples/pictures/explained.png`: run `python examples/pictures/explained.py`.

It is what `docvit classify --explain` draws of a sample document, with fewer colours so that the file is small.
"""

from pathlib import Path

from PIL import Image

import docvit

SAMPLE = Path(__file__).parents[1] / "documents" / "datasheet.pdf"


def draw(file: Path) -> None:
    docvit.explain(docvit.DocumentClassifier.from_pretrained(), SAMPLE).save(file)
    with Image.open(file) as picture:
        few = picture.convert("RGB").quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(file, optimize=True)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".png"))

"""See what a label rests on: `python examples/explain.py [DOCUMENT [PICTURE.png]]`."""

import sys

import docvit

document = sys.argv[1] if len(sys.argv) > 1 else "examples/documents/datasheet.pdf"
picture = sys.argv[2] if len(sys.argv) > 2 else "runs/explained.png"

classifier = docvit.DocumentClassifier.from_pretrained()
explanation = docvit.explain(classifier, document)
explanation.save(picture)  # the pages, the evidence for the label marked on them

prediction = explanation.prediction
print(f"{document}: {prediction.label} ({prediction.score:.0%})")
for page in prediction.pages:
    if not page.failed:
        print(f"  page {page.number}: {page.relevance:.0%} of the evidence")
for word in explanation.words[:5]:  # the strongest first; none where the model saw no words
    print(f"  page {word.page}: {word.text!r}, {word.relevance:.0%} of the strongest word's evidence")
print(f"see {picture}")

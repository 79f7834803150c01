"""Fine-tune a timm ViT on documents: `python examples/finetune_timm.py [DATA [OUTPUT [NAME]]]`.

DATA is a folder with a sub folder per class, or a CSV with the columns path and label; NAME a timm model with a class
token, whose weights are downloaded. By default a small ViT with random weights sees the eight sample documents once.
"""

import sys

import timm

import docvit

data = docvit.read_labelled(sys.argv[1] if len(sys.argv) > 1 else "examples/documents/labels.csv")
output = sys.argv[2] if len(sys.argv) > 2 else "runs/fine-tuned"
name = sys.argv[3] if len(sys.argv) > 3 else "vit_small_patch16_224"

if len(sys.argv) > 1:
    vit = timm.create_model(name, pretrained=True)
else:
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, depth=2)

# the ViT's weights, a table of page indices beside its positions, every block sees the whole document
model = docvit.DocViT.from_timm(vit, page_embeddings=64, scopes="document")
model.save_pretrained(f"{output}/start")

loop = docvit.TrainSettings(epochs=16 if len(sys.argv) > 1 else 1, lr=1e-4)
_, history = docvit.train_documents(data, output, docvit.Recipe(init=f"{output}/start", train=loop))
print("loss per epoch:", " ".join(f"{record['loss']:.2f}" for record in history))
print(docvit.DocumentClassifier.from_pretrained(output)(data.paths[0]).scores)

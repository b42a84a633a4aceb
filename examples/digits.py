"""Distil scikit-learn's digits into ten images in some seconds, judge them, and save them."""

import datadistill as dd

real = dd.load("digits")
with dd.Progress() as bar:
    run = dd.distill(
        real,
        dd.methods.DD(steps=1, epochs=3, images="mean", batch=256),
        model="mlp",
        outer=dd.Outer(lr=0.03, schedule="cosine"),
        iterations=500,
        reporter=bar,
    )
score = dd.evaluate(run.distilled, real)
print(f"test accuracy {score.before.mean:.1%} -> {score.accuracy.mean:.1%} with {len(run.distilled.labels)} images")
run.distilled.save("ten-digits.safetensors")

"""Many benchmarks in one run: asked, recorded question by question, and set out as the paper has them."""

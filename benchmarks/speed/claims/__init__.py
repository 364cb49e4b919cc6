"""The claims, one module each; `benchmarks.speed.catalogue` lists them."""

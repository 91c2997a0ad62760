"""Results in other projects' files: SAEBench's JSON, there and back, sae-probes' JSON, Hugging Face dataset folders."""

"""Results in other projects' files: SAEBench's JSON, there and back, and Hugging Face dataset folders."""

"""The foundation of the other packages: errors, text output, files, hashes, memory and parameters."""

"""What everything else stands on: errors, text that is shown, files, hashes, memory, parameters of classes."""

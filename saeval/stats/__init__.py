"""Evidence and estimates: how numbers add up and what error they carry."""

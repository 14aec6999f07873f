"""Ways to give a token a row it never had; one file a method."""

"""What a run is: one frozen, validated object, read from YAML and dotted overrides."""

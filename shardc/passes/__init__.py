"""The passes: lower, profile, place, emit, verify. Each is one pure function in the file of its name."""

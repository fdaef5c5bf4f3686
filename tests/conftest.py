"""Its being here puts this folder on the path, so that tests anywhere below can import `brute_force`."""

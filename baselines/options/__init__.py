"""Options of the methods beside, a module each: read without torch, whenever a config is checked."""

"""The commands of the command line, by what they are for. Heavy imports wait until a command runs."""

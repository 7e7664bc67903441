"""The `streamdit` command: words, files, colours and exit codes."""

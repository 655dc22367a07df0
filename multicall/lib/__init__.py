"""What the commands share. Knows ninep; knows no command."""

"""What tests of several folders use: messages, SQL calls, other processes, ways to wait, cancel and lose answers."""

"""Speed and robustness measured against others, each module a command of its own."""

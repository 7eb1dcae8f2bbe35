"""What several tests share: `from support.runs import train`. `pythonpath` in setup.cfg makes it importable."""

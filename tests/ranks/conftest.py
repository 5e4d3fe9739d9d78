import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the ranks' own scripts, and what they share

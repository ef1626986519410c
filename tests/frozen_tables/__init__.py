"""Tables that stay as they are, so that a new row of the live ones changes no plan of the tests.

`overlaid(FROZEN)` puts them in the place of the live ones, which tests/tables reads. Change them
only together with the tests that need it. Files that are not here are read live: what is part of
the driver (driver-packages.yaml) is what those tests are about.
"""

from pathlib import Path

FROZEN = Path(__file__).parent

"""Attack techniques and scenarios as data; which paths are open on given findings, how likely, and what closes them."""

"""The hostile probe: attempts as data, and the code that makes them inside a wall in the place of the program."""

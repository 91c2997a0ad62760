"""How it is computed: passes over the rows, what is kept, what is concluded."""

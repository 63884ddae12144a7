"""The viewer: what a browser runs (`web/`), and the one HTML file that holds it together with the data."""

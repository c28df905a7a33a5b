"""What ops, product and customers look at and turn: HTML pages that work without JavaScript, and figures that move."""

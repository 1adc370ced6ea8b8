"""What tokens cost and who pays: prices, discounts and department rules as versions."""

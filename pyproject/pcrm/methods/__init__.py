"""Methods beside the loss, from other papers. Experimental: their interfaces may change in any release."""

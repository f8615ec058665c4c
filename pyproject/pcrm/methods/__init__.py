"""Methods from other papers that complement the loss. Experimental: their interfaces may change in any release."""

"""The extension that gopy makes of the Go package bridge: private, loaded by `pcrm.backends` on first use."""

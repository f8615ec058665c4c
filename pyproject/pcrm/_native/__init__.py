"""The extension that gopy makes of the Go package bridge: private, loaded by `pcrm._engine.native` on first use."""

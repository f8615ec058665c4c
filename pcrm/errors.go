package pcrm

import "fmt"

// ArgumentError reports an argument whose value a function of this package
// cannot use.
type ArgumentError struct {
	Argument string // the argument's name, as Python and TOML spell it: "delta"
	Index    int    // the offending element, or -1 where the argument is no slice
	Reason   string // what is wrong, with the value: "is -3, must be greater than 0"
}

// Error reads "delta[3] is -1, must be greater than 0".
func (e *ArgumentError) Error() string {
	if e.Index < 0 {
		return e.Argument + " " + e.Reason
	}
	return fmt.Sprintf("%s[%d] %s", e.Argument, e.Index, e.Reason)
}

func argErr(argument string, index int, format string, args ...any) error {
	return &ArgumentError{argument, index, fmt.Sprintf(format, args...)}
}

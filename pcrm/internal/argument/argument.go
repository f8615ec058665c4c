// Package argument defines the error for an argument that a function cannot use. All packages
// share this one type, so the bridge to Python can recognize it.
package argument

import "fmt"

// Error reports an argument whose value a function cannot use.
type Error struct {
	Argument string // the argument's name, as Python and TOML spell it: "delta"
	Index    int    // the index of the offending element, or -1 if the argument is not a slice
	Reason   string // what is wrong, with the value: "must be greater than 0, got -3"
}

// Error reads "delta[3] must be greater than 0, got -1".
func (e *Error) Error() string {
	if e.Index < 0 {
		return e.Argument + " " + e.Reason
	}
	return fmt.Sprintf("%s[%d] %s", e.Argument, e.Index, e.Reason)
}

// Errorf returns an [*Error] with a formatted reason. index is -1 if the argument is not a slice.
func Errorf(name string, index int, format string, args ...any) error {
	return &Error{name, index, fmt.Sprintf(format, args...)}
}

// Positive returns an error if v is not greater than 0. NaN is an error.
func Positive[F float32 | float64](name string, index int, v F) error {
	if !(v > 0) {
		return Errorf(name, index, "must be greater than 0, got %v", v)
	}
	return nil
}

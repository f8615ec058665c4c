// Package argument has the error of an argument that a function cannot use. It is one type for
// all packages, so that the bridge to Python knows it.
package argument

import "fmt"

// Error reports an argument with a value that a function cannot use.
type Error struct {
	Argument string // the argument's name, as Python and TOML spell it: "delta"
	Index    int    // the offending element, or -1 where the argument is no slice
	Reason   string // what is wrong, with the value: "must be greater than 0, got -3"
}

// Error reads "delta[3] must be greater than 0, got -1".
func (e *Error) Error() string {
	if e.Index < 0 {
		return e.Argument + " " + e.Reason
	}
	return fmt.Sprintf("%s[%d] %s", e.Argument, e.Index, e.Reason)
}

// Errorf returns an [*Error] with a formatted reason. index is -1 where the argument is no slice.
func Errorf(name string, index int, format string, args ...any) error {
	return &Error{name, index, fmt.Sprintf(format, args...)}
}

// Positive returns an error for a number that is not greater than 0, such as NaN.
func Positive[F float32 | float64](name string, index int, v F) error {
	if !(v > 0) {
		return Errorf(name, index, "must be greater than 0, got %v", v)
	}
	return nil
}

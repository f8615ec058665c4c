package pcrm

import "github.com/pcrm-project/pcrm/pcrm/internal/argument"

// ArgumentError reports an argument whose value a function cannot use. The packages prior,
// prefix, trace, stats, checkpoint and gpu return it too. Its fields are
//
//	Argument string // the argument's name, as Python and TOML spell it: "delta"
//	Index    int    // the index of the offending element, or -1 if the argument is not a slice
//	Reason   string // what is wrong, with the value: "must be greater than 0, got -3"
type ArgumentError = argument.Error

func argErr(name string, index int, format string, args ...any) error {
	return argument.Errorf(name, index, format, args...)
}

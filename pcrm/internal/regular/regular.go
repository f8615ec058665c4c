// Package regular opens files whose names may be those of something else.
package regular

import (
	"errors"
	"os"
	"syscall"
)

// Open opens a regular file for reading and returns its size. Errors, each an
// [*os.PathError]: it cannot be opened, or is no regular file, such as a pipe.
func Open(path string) (*os.File, int64, error) {
	// To open a pipe with no writer waits for one, unless told not to. What it is is asked of
	// what was opened, as another file may have the name by then.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &os.PathError{Op: "open", Path: path, Err: errors.New("must be a regular file")}
	}
	if err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, info.Size(), nil
}

// Package regular opens files and rejects anything that is not a regular file.
package regular

import (
	"errors"
	"os"
	"syscall"
)

// Open opens a regular file for reading and returns its size.
//
// Errors, each an [*os.PathError]: the path cannot be opened, or is not a regular file
// (a pipe, for example).
func Open(path string) (*os.File, int64, error) {
	// Without O_NONBLOCK, opening a pipe waits for a writer. Stat is called on the open file,
	// because the path may meanwhile name another one.
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

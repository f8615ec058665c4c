//go:build !amd64 || purego

package tier

// Best returns the only tier of this build.
func Best() Tier { return Scalar }

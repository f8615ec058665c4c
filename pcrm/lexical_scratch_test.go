package pcrm

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Not by way of Lexical, whose pool forgets on purpose under the race detector.
func TestLexicalScratchIsReused(t *testing.T) {
	long := strings.Repeat("prior constraints é ", 30)
	var x lexical
	for _, words := range []bool{false, true} {
		o := LexicalOptions{Words: words}
		require.NoError(t, o.resolve())
		buffer := []byte(long)
		assert.Zero(t, testing.AllocsPerRun(100, func() {
			x.a, x.b = normalise(x.a[:0], long), normalise(x.b[:0], buffer)
			x.cosine(o)
		}))
	}
}

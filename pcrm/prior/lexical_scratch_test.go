package prior

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// This does not use Lexical, because its pool drops items on purpose under the race detector.
func TestLexicalScratchIsReused(t *testing.T) {
	long := strings.Repeat("prior constraints é ", 30)
	var x lexical
	for _, words := range []bool{false, true} {
		o := LexicalOptions{Words: words}
		require.NoError(t, o.resolve())
		buffer := []byte(long)
		assert.Zero(t, testing.AllocsPerRun(100, func() {
			x.a, x.b = normalize(x.a[:0], long), normalize(x.b[:0], buffer)
			x.cosine(o)
		}))
	}
}

// A smaller comparison must not see entries that a larger one left in the table.
func TestLexicalScratchIsClean(t *testing.T) {
	o := LexicalOptions{MinN: 1, MaxN: 5}
	var x lexical
	compare := func(a, b string) float64 {
		x.a, x.b = normalize(x.a[:0], a), normalize(x.b[:0], b)
		return x.cosine(o)
	}
	for i := range 200 {
		a, b := strings.Repeat(string(rune('a'+i)), 3)+"xyz", "xy"+string(rune('b'+i))
		used := x
		x = lexical{}
		want := compare(a, b)
		x = used
		for range 2 {
			assert.Equal(t, want, compare(a, b), "%s %s", a, b)
		}
		compare(strings.Repeat(a, 50), b)
	}
}

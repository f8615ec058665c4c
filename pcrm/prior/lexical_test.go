package prior_test

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
	"github.com/pcrm-project/pcrm/pcrm/prior"
)

// naiveGrams counts n-grams as defined in the documentation of Lexical, in a map keyed by their
// text.
func naiveGrams(text string, o prior.LexicalOptions) map[string]int {
	if o.MinN == 0 {
		o.MinN, o.MaxN = 3, 5
		if o.Words {
			o.MinN, o.MaxN = 1, 2
		}
	}
	words := strings.Fields(strings.Map(unicode.ToLower, text))
	if len(words) == 0 {
		return nil
	}
	units, separator := words, " "
	if !o.Words {
		units, separator = nil, ""
		for _, r := range " " + strings.Join(words, " ") + " " {
			units = append(units, string(r))
		}
	}
	grams := map[string]int{}
	for n := min(o.MinN, len(units)); n <= min(o.MaxN, len(units)); n++ {
		for i := 0; i+n <= len(units); i++ {
			grams[strings.Join(units[i:i+n], separator)]++
		}
	}
	return grams
}

func naiveLexical(a, b string, o prior.LexicalOptions) float64 {
	x, y := naiveGrams(a, o), naiveGrams(b, o)
	if len(x) == 0 && len(y) == 0 {
		return 1
	}
	if len(x) == 0 || len(y) == 0 {
		return 0
	}
	var ab, aa, bb int
	for g, n := range x {
		aa += n * n
		ab += n * y[g]
	}
	for _, n := range y {
		bb += n * n
	}
	return float64(ab) / math.Sqrt(float64(aa)*float64(bb))
}

func lexical(t testing.TB, a, b string, o prior.LexicalOptions) float64 {
	t.Helper()
	s, err := prior.Lexical(a, b, o)
	require.NoError(t, err)
	return s
}

func TestLexical(t *testing.T) {
	one, words := prior.LexicalOptions{MinN: 1, MaxN: 1}, prior.LexicalOptions{Words: true}
	for _, c := range []struct {
		a, b string
		o    prior.LexicalOptions
		want float64
	}{
		{"", "", prior.LexicalOptions{}, 1},
		{" \t\r\n\v\f\u00a0\u2003\u3000", "", prior.LexicalOptions{}, 1},
		{"", "a", prior.LexicalOptions{}, 0},
		{"a", " ", words, 0},
		{"The  cat\n", "the cat", prior.LexicalOptions{}, 1},
		{"The cat", "the cat", words, 1},
		{"ÀÉÎ Ωμέγα ДОМ", "àéî ωΜΈΓΑ дом", prior.LexicalOptions{}, 1},
		{"猫が好き", "猫が好き", prior.LexicalOptions{}, 1},
		{"\xff", "\ufffd", prior.LexicalOptions{}, 1}, // bytes that are not UTF-8
		{"abc", "xyz", prior.LexicalOptions{}, 0},
		{"a", "b", prior.LexicalOptions{MinN: 9, MaxN: 9}, 0}, // shorter than n: the whole text is an n-gram
		{"a", "A", prior.LexicalOptions{MinN: 9, MaxN: 9}, 1},
		{"ab", "ab ab", prior.LexicalOptions{Words: true, MinN: 3, MaxN: 3}, 0},
		// " a " and " a b " by characters: 2 spaces and an a; 3 spaces, an a and a b.
		{"a", "a b", one, 7 / math.Sqrt(5*11)},
		// Words a, b, "a b" against a, c, "a c".
		{"a b", "a c", words, 1.0 / 3},
		// Punctuation stays with its word.
		{"a, b", "a b", prior.LexicalOptions{Words: true, MinN: 1, MaxN: 1}, 0.5},
		{"a a a", "a", prior.LexicalOptions{Words: true, MinN: 1, MaxN: 1}, 1}, // a direction, not a length
		{"abc", "abc", prior.LexicalOptions{MinN: 1, MaxN: math.MaxInt}, 1},
	} {
		assert.Equal(t, c.want, lexical(t, c.a, c.b, c.o), "%+v", c)
		assert.Equal(t, c.want, lexical(t, c.b, c.a, c.o), "swapped %+v", c)
		assert.Equal(t, c.want, naiveLexical(c.a, c.b, c.o), "naive %+v", c)
	}
}

func TestLexicalErrors(t *testing.T) {
	for message, o := range map[string]prior.LexicalOptions{
		"min_n must be at least 1, got -1":                {MinN: -1, MaxN: 3},
		"min_n must be at least 1, got 0":                 {MaxN: 3},
		"max_n must be at least min_n, which is 3, got 2": {MinN: 3, MaxN: 2},
		"max_n must be at least min_n, which is 3, got 0": {MinN: 3, Words: true},
	} {
		_, err := prior.Lexical("a", "b", o)
		assert.EqualError(t, err, message)
		assert.EqualError(t, prior.Lexicals([]float32{}, nil, []int32{0}, nil, []int32{0}, o), message)
		var argument *pcrm.ArgumentError
		assert.ErrorAs(t, err, &argument)
	}
	dst := make([]float32, 2)
	good := []int32{0, 1, 2}
	for message, offsets := range map[string][]int32{
		"must have 3 offsets for 2 rows, got 2":     {0, 2},
		"[2] must have an offset in [1, 2], got 3":  {0, 1, 3},
		"[2] must have an offset in [1, 2], got 0":  {0, 1, 0},
		"[0] must have an offset in [0, 2], got -1": {-1, 1, 2},
	} {
		space := " "
		if message[0] == '[' {
			space = ""
		}
		assert.EqualError(t, prior.Lexicals(dst, []byte("ab"), offsets, []byte("ab"), good, prior.LexicalOptions{}), "chosen"+space+message)
		assert.EqualError(t, prior.Lexicals(dst, []byte("ab"), good, []byte("ab"), offsets, prior.LexicalOptions{}), "rejected"+space+message)
	}
}

// texts returns n responses of words from a small vocabulary in several scripts, so that pairs
// share many words.
func texts(n int) (all []string) {
	r := rand.New(rand.NewPCG(7, 8))
	vocabulary := strings.Fields("I moved into a new apartment with my fiancé, he refuses to wash his clothes; should ask him leave? " +
		"Сосед ОТКАЗАЛСЯ стирать. 猫が好きです Ärger mit dem Mitbewohner! Ωμέγα 42 don't")
	for range n {
		var words []string
		for range r.IntN(50) {
			words = append(words, vocabulary[r.IntN(len(vocabulary))])
		}
		all = append(all, strings.Join(words, " "))
	}
	return all
}

func column[O prior.Int](texts []string) (values []byte, offsets []O) {
	offsets = []O{0}
	for _, s := range texts {
		values = append(values, s...)
		offsets = append(offsets, O(len(values)))
	}
	return values, offsets
}

// A column large enough for several goroutines, whose tables grow and shrink, gives the same bits as
// the naive count of each row.
func TestLexicalsOfManyRows(t *testing.T) {
	t.Run("int32", lexicalsOfManyRows[int32])
	t.Run("int64", lexicalsOfManyRows[int64])
}

func lexicalsOfManyRows[O prior.Int](t *testing.T) {
	a, b := texts(2001)[:2000], texts(2001)[1:]
	chosen, chosenOffsets := column[O](a)
	rejected, rejectedOffsets := column[O](b)
	for _, o := range []prior.LexicalOptions{{}, {Words: true}, {MinN: 2, MaxN: 2}, {Words: true, MinN: 2, MaxN: 7}} {
		dst := make([]float64, len(a))
		require.NoError(t, prior.Lexicals(dst, chosen, chosenOffsets, rejected, rejectedOffsets, o))
		for i, got := range dst {
			require.Equal(t, naiveLexical(a[i], b[i], o), got, "row %d", i)
		}
	}
}

func TestLexicalProperties(t *testing.T) {
	all := texts(500)
	for i, a := range all[1:] {
		b := all[i]
		for _, o := range []prior.LexicalOptions{{}, {Words: true}} {
			s := lexical(t, a, b, o)
			assert.True(t, s >= 0 && s <= 1)
			assert.Equal(t, s, lexical(t, b, a, o), "symmetric")
			assert.Equal(t, 1.0, lexical(t, a, a, o), "exactly 1 with itself")
			assert.Equal(t, s, lexical(t, "\n"+strings.ReplaceAll(a, " ", " \t")+" ", b, o), "white space")
		}
	}
}

// The value itself, which must be the same on every platform, so that a change of the hash, the table
// or the normalization is detected.
func TestLexicalIsPinned(t *testing.T) {
	s := lexical(t, "Fiancé and I got infected; room mate refuses to get treated.", "My room mate REFUSES to treat his own clothes.", prior.LexicalOptions{})
	assert.Equal(t, 0.42861624874036724, s)
}

func FuzzLexical(f *testing.F) {
	f.Add("", "", false, 0, 0)
	f.Add("The cat", " the\tCAT ", true, 1, 2)
	f.Add("aaaaaaaa", "aaa\x00\xffé", false, 3, 5)
	f.Add("İstanbul ΣΑΣ", "i̇stanbul σας", false, 1, 9)
	f.Add("a\u0085b\u2028c", "\u3000", true, 4, 4)
	f.Fuzz(func(t *testing.T, a, b string, words bool, low, high int) {
		if len(a)+len(b) > 1000 { // the number of n-grams of all lengths is quadratic
			return
		}
		o := prior.LexicalOptions{Words: words, MinN: low, MaxN: high}
		s, err := prior.Lexical(a, b, o)
		if bad := low < 1 || high < low; bad && (low != 0 || high != 0) {
			require.Error(t, err)
			return
		}
		require.NoError(t, err)
		require.Equal(t, naiveLexical(a, b, o), s, "%q %q %+v", a, b, o)
		dst := make([]float64, 1)
		require.NoError(t, prior.Lexicals(dst, []byte(a), []int32{0, int32(len(a))}, []byte(b), []int32{0, int32(len(b))}, o))
		require.Equal(t, s, dst[0])
		require.True(t, !utf8.ValidString(a) || lexical(t, a, a, o) == 1)
	})
}

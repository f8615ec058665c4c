package prior

import (
	"math"
	"math/bits"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
	"github.com/pcrm-project/pcrm/pcrm/internal/parallel"
)

// LexicalOptions are the settings of [Lexical]. The zero value selects n-grams of 3 to 5
// characters, which work for languages without a notion of words.
type LexicalOptions struct {
	// Words selects n-grams of words (by default of 1 and 2 words) instead of characters.
	Words bool

	// MinN and MaxN are the least and the greatest n, with 1 <= MinN <= MaxN. If both
	// are 0, the default applies.
	MinN, MaxN int
}

func (o *LexicalOptions) resolve() error {
	switch {
	case o.MinN == 0 && o.MaxN == 0 && o.Words:
		o.MinN, o.MaxN = 1, 2
	case o.MinN == 0 && o.MaxN == 0:
		o.MinN, o.MaxN = 3, 5
	case o.MinN < 1:
		return argument.Errorf("min_n", -1, "must be at least 1, got %d", o.MinN)
	case o.MaxN < o.MinN:
		return argument.Errorf("max_n", -1, "must be at least min_n, which is %d, got %d", o.MinN, o.MaxN)
	}
	return nil
}

// Lexical returns a prior similarity of two responses that needs no encoder: the cosine of
// their n-gram counts,
//
//	s = sum_g A[g] B[g] / sqrt(sum_g A[g]^2 sum_g B[g]^2), in [0, 1]
//
// where A[g] is how often the n-gram g occurs in a.
//
//   - A text is decoded from UTF-8; each invalid byte becomes U+FFFD. Each character is
//     replaced by its simple lower-case mapping ([unicode.ToLower]), and each run of white
//     space ([unicode.IsSpace]) by one space. One space is added at either end, so that
//     words also end at the ends of a text.
//   - A character n-gram consists of n consecutive characters, including spaces. A word
//     n-gram consists of n consecutive words, separated by single spaces. Words are
//     delimited by spaces.
//   - A text with fewer than MinN characters or words is a single n-gram.
//
// Texts that are equal after the replacements give exactly 1, and so do two texts that
// consist of white space only. A text of white space and any other text give 0. s is
// symmetric.
//
// N-grams are identified by a 64-bit hash of their characters (h = (h^c)*0x9e3779b97f4a7c15
// for each code point c, starting from h = 0xcbf29ce484222325), so the counts are exact
// except for hash collisions. Counts are integers, so the result is the same on every
// platform, up to the Unicode version of the lower-case table.
//
// Errors, each a *pcrm.ArgumentError: options that do not satisfy 1 <= MinN <= MaxN.
func Lexical(a, b string, o LexicalOptions) (float64, error) {
	if err := o.resolve(); err != nil {
		return 0, err
	}
	x := lexicals.Get().(*lexical)
	defer lexicals.Put(x)
	x.a, x.b = normalize(x.a[:0], a), normalize(x.b[:0], b)
	return x.cosine(o), nil
}

// Lexicals writes the [Lexical] similarity of each pair of texts to dst, rounded
// once. Text i of a ragged column is values[offsets[i]:offsets[i+1]], the layout of
// an Arrow string array (int32) or large string array (int64).
//
// Errors, each a *pcrm.ArgumentError: those of [Lexical]; offsets whose length is not
// len(dst)+1, that decrease, or that are outside the values.
func Lexicals[F Float, O Int](dst []F, chosen []byte, chosenOffsets []O, rejected []byte, rejectedOffsets []O, o LexicalOptions) error {
	if err := o.resolve(); err != nil {
		return err
	}
	if err := checkOffsets("chosen", len(dst), len(chosen), chosenOffsets); err != nil {
		return err
	}
	if err := checkOffsets("rejected", len(dst), len(rejected), rejectedOffsets); err != nil {
		return err
	}
	parallel.Rows(len(dst), raggedGrain(len(dst), len(chosen)+len(rejected)), func(lo, hi int) {
		x := lexicals.Get().(*lexical)
		defer lexicals.Put(x)
		for i := lo; i < hi; i++ {
			x.a = normalize(x.a[:0], chosen[chosenOffsets[i]:chosenOffsets[i+1]])
			x.b = normalize(x.b[:0], rejected[rejectedOffsets[i]:rejectedOffsets[i+1]])
			dst[i] = F(x.cosine(o))
		}
	})
	return nil
}

// normalize appends the characters of a text in the form that Lexical compares, or nothing
// if the text consists of white space only.
func normalize[T string | []byte](dst []rune, text T) []rune {
	dst = append(dst, ' ')
	for i := 0; i < len(text); {
		r, size := rune(text[i]), 1
		switch {
		case r >= utf8.RuneSelf:
			// Convert at most four bytes to a string, not a copy of the whole text.
			r, size = utf8.DecodeRuneInString(string(text[i:min(i+utf8.UTFMax, len(text))]))
			if unicode.IsSpace(r) {
				r = ' '
			} else {
				r = unicode.ToLower(r)
			}
		case 'A' <= r && r <= 'Z':
			r += 'a' - 'A'
		case '\t' <= r && r <= '\r':
			r = ' '
		}
		i += size
		if r != ' ' || dst[len(dst)-1] != ' ' {
			dst = append(dst, r)
		}
	}
	switch {
	case len(dst) == 1:
		return dst[:0]
	case dst[len(dst)-1] != ' ':
		dst = append(dst, ' ')
	}
	return dst
}

// lexical holds the memory for the comparison of two texts.
type lexical struct {
	a, b  []rune
	table []gram // open addressing, a power of two
	shift uint   // a hash belongs at index hash >> shift
}

var lexicals = sync.Pool{New: func() any { return new(lexical) }}

// gram counts the occurrences of an n-gram in a and in b. If both counts are 0, the slot is free.
type gram struct {
	hash uint64
	n    [2]uint32
}

const (
	hashStart = 0xcbf29ce484222325
	// The fractional part of the golden ratio. Its small multiples are spread as evenly as
	// possible, so n-grams that differ in one character do not collide.
	hashFactor = 0x9e3779b97f4a7c15
)

// cosine compares x.a and x.b.
func (x *lexical) cosine(o LexicalOptions) float64 {
	if len(x.a) == 0 || len(x.b) == 0 {
		if len(x.a) == len(x.b) {
			return 1
		}
		return 0
	}
	unitsA, unitsB := units(x.a, o), units(x.b, o)
	// The table is at most half full, so it always has a free slot. Clearing it takes a few
	// vector stores, less than tagging each slot with its comparison.
	log := bits.Len(uint(2*(grams(unitsA, o)+grams(unitsB, o)) - 1))
	if cap(x.table) < 1<<log {
		x.table = make([]gram, 1<<log)
	}
	x.table = x.table[:1<<log]
	x.shift = uint(64 - log)
	clear(x.table)
	aa, _ := x.count(0, x.a, min(o.MinN, unitsA), min(o.MaxN, unitsA), o.Words)
	bb, ab := x.count(1, x.b, min(o.MinN, unitsB), min(o.MaxN, unitsB), o.Words)
	// sqrt(x*x) is exactly x, so equal texts give exactly 1.
	return float64(ab) / math.Sqrt(float64(aa)*float64(bb))
}

// units returns the number of characters or words of a text.
func units(text []rune, o LexicalOptions) int {
	if !o.Words {
		return len(text)
	}
	words := -1
	for _, c := range text {
		if c == ' ' {
			words++
		}
	}
	return words
}

// grams returns the number of n-grams of a text with this many units: 1 if there are fewer
// than MinN units, else the sum of units-n+1.
func grams(units int, o LexicalOptions) int {
	low, high := min(o.MinN, units), min(o.MaxN, units)
	return (high - low + 1) * (2*units - low - high + 2) / 2
}

// count enters the n-grams of low to high units for side 0 or 1. It returns the sum of their
// squared counts and the sum of the products with the counts of the other side.
func (x *lexical) count(side int, text []rune, low, high int, words bool) (squares, products uint64) {
	if !words {
		for start := range len(text) - low + 1 {
			h := uint64(hashStart)
			for i, c := range text[start:min(start+high, len(text))] {
				h = (h ^ uint64(c)) * hashFactor
				if i+1 >= low {
					square, product := x.enter(h, side)
					squares, products = squares+square, products+product
				}
			}
		}
		return squares, products
	}
	for start, c := range text[:len(text)-1] {
		if c != ' ' {
			continue
		}
		h, n := uint64(hashStart), 0
		for _, c := range text[start+1:] {
			if c == ' ' {
				n++
				if n >= low {
					square, product := x.enter(h, side)
					squares, products = squares+square, products+product
				}
				if n == high {
					break
				}
			}
			h = (h ^ uint64(c)) * hashFactor
		}
	}
	return squares, products
}

// enter counts an n-gram for a side. It returns the increase of the square of its count, and
// the count of the other side.
func (x *lexical) enter(hash uint64, side int) (square, product uint64) {
	mask := uint64(len(x.table) - 1)
	for at := hash >> (x.shift & 63); ; at = (at + 1) & mask {
		g := &x.table[at]
		if g.hash != hash {
			if g.n != [2]uint32{} {
				continue
			}
			g.hash = hash
		}
		g.n[side]++
		return 2*uint64(g.n[side]) - 1, uint64(g.n[1-side])
	}
}

package prior_test

import (
	"strings"
	"testing"

	"github.com/pcrm-project/pcrm/pcrm/prior"
)

func reportPairs(b *testing.B, perOp int) {
	b.ReportMetric(float64(perOp)*float64(b.N)/b.Elapsed().Seconds(), "pairs/s")
}

// Responses of about 145 characters, the mean of the TL;DR summaries. A pair shares half of its
// text.
func BenchmarkLexicals(b *testing.B) {
	const rows = 2000
	words := strings.Fields(strings.Join(texts(2000), " "))
	response := func(i int) string {
		text := strings.Join(words[i%(len(words)-40):][:30], " ")
		return text[:min(len(text), 145)]
	}
	var x, y []string
	for i := range rows {
		x, y = append(x, response(20*i)), append(y, response(20*i+12))
	}
	chosen, chosenOffsets := column[int32](x)
	rejected, rejectedOffsets := column[int32](y)
	dst := make([]float32, rows)
	for name, o := range map[string]prior.LexicalOptions{"characters": {}, "words": {Words: true}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(chosen) + len(rejected)))
			for b.Loop() {
				if err := prior.Lexicals(dst, chosen, chosenOffsets, rejected, rejectedOffsets, o); err != nil {
					b.Fatal(err)
				}
			}
			reportPairs(b, rows)
		})
	}
}

func BenchmarkCosines(b *testing.B) {
	b.Run("float32", func(b *testing.B) { benchmarkCosines[float32](b, 1) })
	b.Run("float64", func(b *testing.B) { benchmarkCosines[float64](b, 1) })
	b.Run("float16", func(b *testing.B) { benchmarkCosines[prior.Float16](b, 0x3c00) })
}

func benchmarkCosines[E prior.Element](b *testing.B, one E) {
	const rows, dim = 20_000, 384 // larger than the caches
	x, y, dst := make([]E, rows*dim), make([]E, rows*dim), make([]float32, rows)
	for i := range x {
		x[i], y[i] = one+E(i%7), one+E(i%5)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := prior.Cosines(dst, x, y, dim, true); err != nil {
			b.Fatal(err)
		}
	}
	reportPairs(b, rows)
}

func BenchmarkLengthRatios(b *testing.B) {
	b.Run("int32", benchmarkLengthRatios[int32])
	b.Run("int64", benchmarkLengthRatios[int64])
}

func benchmarkLengthRatios[I prior.Int](b *testing.B) {
	const rows = 20_000
	chosen, chosenOffsets, rejected, rejectedOffsets := raggedIDs[I, int32](rows)
	dst := make([]float32, rows)
	b.ReportAllocs()
	for b.Loop() {
		if err := prior.LengthRatios(dst, chosen, chosenOffsets, rejected, rejectedOffsets, prior.NoPad); err != nil {
			b.Fatal(err)
		}
	}
	reportPairs(b, rows)
}

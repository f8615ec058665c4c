package prior

// RandomUniform returns the number u in [0, 1) that a random pcrm.Constraint uses for a
// pair. It is a hash of the seed and the token ids of both responses, so it is the same in
// every batch, process and epoch, and after a resume.
//
// The hash covers the whole rows, including a common prompt, except for padTokens at their
// ends. So padding does not change u, and neither does the end-of-text token if it is also
// the pad token. Use [NoPad] if there is no padding. Swapping the responses changes u. In
// 64-bit arithmetic that wraps around:
//
//	h = seed
//	for v in len(chosen), len(rejected), chosen..., rejected...:
//		h = (h ^ v) * 0x9e3779b97f4a7c15
//		h = h ^ (h >> 32)
//	u = (h * 0x9e3779b97f4a7c15 >> 40) / 2^24
//
// where a negative id v counts as 2^64 + v. In Python, whose integers do not wrap around:
//
//	M, G = 2**64 - 1, 0x9E3779B97F4A7C15
//	h = seed
//	for v in (len(chosen), len(rejected), *chosen, *rejected):
//		h = (h ^ v) * G & M
//		h ^= h >> 32
//	u = ((h * G & M) >> 40) / 2**24
//
// Test vector: seed 42, chosen 1 2 3, rejected 1 9 give 0x1.529836p-1, which is
// 0.6613175272941589. u has 24 bits, so it is exact in float32, and less than 1 there too.
func RandomUniform[I Int](seed uint64, chosen, rejected []I, padToken I) float64 {
	chosen, rejected = trimPadding(chosen, padToken), trimPadding(rejected, padToken)
	h := absorb(absorb(seed, uint64(len(chosen))), uint64(len(rejected)))
	for _, id := range chosen {
		h = absorb(h, uint64(id))
	}
	for _, id := range rejected {
		h = absorb(h, uint64(id))
	}
	return float64(h*hashFactor>>40) / (1 << 24)
}

func absorb(h, v uint64) uint64 {
	h = (h ^ v) * hashFactor
	return h ^ h>>32
}

func trimPadding[I Int](ids []I, padToken I) []I {
	if padToken != NoPad {
		for len(ids) > 0 && ids[len(ids)-1] == padToken {
			ids = ids[:len(ids)-1]
		}
	}
	return ids
}

// RandomUniforms writes the exact [RandomUniform] of each pair of rows to dst. Columns and
// errors are as in [LengthRatios].
func RandomUniforms[F Float, I, O Int](dst []F, seed uint64, chosen []I, chosenOffsets []O, rejected []I, rejectedOffsets []O, padToken I) error {
	return eachPair(dst, chosen, chosenOffsets, rejected, rejectedOffsets, func(c, r []I) float64 {
		return RandomUniform(seed, c, r, padToken)
	})
}

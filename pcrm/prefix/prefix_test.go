package prefix

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// made is a packed batch with its plan.
type made struct {
	Plan
	ids, lengths                    []int64
	width                           int
	packed, positions, ends, gather []int64
}

func pack(t testing.TB, rows [][]int64, o Options) made {
	width := 0
	for _, row := range rows {
		width = max(width, len(row))
	}
	m := made{width: width, ids: make([]int64, width*len(rows)), lengths: make([]int64, len(rows))}
	for i, row := range rows {
		copy(m.ids[i*width:], row)
		for k := len(row); k < width; k++ {
			m.ids[i*width+k] = 7 // a padding id that is also a token
		}
		m.lengths[i] = int64(len(row))
	}
	require.NoError(t, m.Arrange(m.ids, width, m.lengths, o))
	size := m.Rows * m.Width
	m.packed, m.positions, m.ends = make([]int64, size), make([]int64, size), make([]int64, size)
	m.gather = make([]int64, len(m.ids))
	require.NoError(t, m.Pack(m.packed, m.positions, m.ends, m.gather, m.ids, width, m.lengths))
	return m
}

// sees lists the tokens to which a token attends, by the rule in the package documentation.
func (m made) sees(q int64) (tokens []int64) {
	row, column := q/int64(m.Width), q%int64(m.Width)
	for k := range int64(m.Width) {
		if k <= column && column < m.ends[row*int64(m.Width)+k] {
			tokens = append(tokens, row*int64(m.Width)+k)
		}
	}
	return tokens
}

// computed returns the number of tokens of the packed batch that belong to a row.
func (m made) computed() int {
	found := map[int64]bool{}
	for _, at := range m.gather {
		found[at] = true
	}
	return len(found)
}

// check compares a packed batch with its rows. Unpacking gives the rows, and each token attends exactly to
// the tokens of its row up to itself.
func (m made) check(t testing.TB, rows [][]int64) {
	for r, row := range rows {
		path := m.gather[r*m.width:][:m.width]
		for j, token := range row {
			require.Equal(t, token, m.packed[path[j]])
			require.EqualValues(t, j, m.positions[path[j]])
			require.Equal(t, path[:j+1], m.sees(path[j]), "row %d, token %d", r, j)
		}
		for _, at := range path[len(row):] {
			require.Equal(t, path[len(row)-1], at, "padding of row %d", r)
		}
	}
	real := map[int64]bool{}
	for _, at := range m.gather {
		real[at] = true
	}
	for k := range int64(len(m.packed)) {
		if !real[k] {
			require.Zero(t, m.packed[k])
			require.Zero(t, m.positions[k])
			require.Equal(t, []int64{k}, m.sees(k))
		}
	}
}

// distinct returns the number of different prefixes of the rows, the least number of tokens to compute.
func distinct(rows [][]int64) int {
	found := map[string]bool{}
	for _, row := range rows {
		key := []byte{}
		for _, token := range row {
			key = append(key, byte(token))
			found[string(key)] = true
		}
	}
	return len(found)
}

// random returns rows that share prefixes of any length.
func random(g *rand.Rand) [][]int64 {
	rows := make([][]int64, 1+g.IntN(12))
	for i := range rows {
		if i > 0 && g.IntN(4) > 0 {
			of := rows[g.IntN(i)]
			rows[i] = slices.Clone(of[:1+g.IntN(len(of))])
		}
		for n := g.IntN(6); n > 0 || len(rows[i]) == 0; n-- {
			rows[i] = append(rows[i], g.Int64N(3))
		}
	}
	return rows
}

func TestUnpackingGivesTheRowsBack(t *testing.T) {
	g := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		rows := random(g)
		m := pack(t, rows, Options{})
		m.check(t, rows)
		require.Equal(t, distinct(rows), m.computed())
	}
}

func TestThresholdAndBudget(t *testing.T) {
	g := rand.New(rand.NewPCG(3, 4))
	for range 3000 {
		rows := random(g)
		o := Options{MinShared: g.IntN(5), Budget: g.IntN(30)}
		m := pack(t, rows, o)
		m.check(t, rows)
		if o.Budget > 0 {
			require.LessOrEqual(t, m.Width, max(o.Budget, m.width))
		}
		for i, shared := range m.Shared {
			if i == 0 || shared == 0 {
				continue
			}
			length, before := m.lengths[m.Order[i]], m.lengths[m.Order[i-1]]
			require.True(t, shared >= int64(o.MinShared) || shared == length || shared == before)
		}
	}
}

func TestWhatShares(t *testing.T) {
	for name, c := range map[string]struct {
		rows     [][]int64
		o        Options
		computed int
		shape    [2]int
	}{
		"one row":           {[][]int64{{5, 6}}, Options{}, 2, [2]int{1, 2}},
		"nothing":           {[][]int64{{1, 2, 3}, {2, 3}, {3}}, Options{}, 6, [2]int{2, 3}},
		"equal rows":        {[][]int64{{1, 2}, {9}, {1, 2}}, Options{MinShared: 5}, 3, [2]int{2, 2}},
		"one begins others": {[][]int64{{1, 2, 3}, {1, 2}, {1, 2, 3, 4}}, Options{MinShared: 5}, 4, [2]int{1, 4}},
		"anywhere":          {[][]int64{{1, 2, 3}, {8, 8}, {1, 2, 4}, {8, 9}}, Options{}, 7, [2]int{2, 4}},
		"below threshold":   {[][]int64{{1, 2, 3}, {1, 2, 4}}, Options{MinShared: 3}, 6, [2]int{2, 3}},
		"at threshold":      {[][]int64{{1, 2, 3}, {1, 2, 4}}, Options{MinShared: 2}, 4, [2]int{1, 4}},
		"over budget":       {[][]int64{{1, 2, 3}, {1, 2, 4}, {1, 2, 5}, {1, 2, 6}}, Options{Budget: 4}, 8, [2]int{2, 4}},
		"nested":            {[][]int64{{1, 2, 3}, {1, 2, 4}, {1, 5, 6}, {1, 5, 7}}, Options{}, 7, [2]int{1, 7}},
		"negative tokens":   {[][]int64{{-1, 2}, {-1}, {-1, -1}}, Options{}, 3, [2]int{1, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			m := pack(t, c.rows, c.o)
			m.check(t, c.rows)
			require.Equal(t, c.computed, m.computed())
			require.Equal(t, c.shape, [2]int{m.Rows, m.Width})
		})
	}
	t.Run("no rows", func(t *testing.T) {
		var p Plan
		require.NoError(t, p.Arrange(nil, 3, nil, Options{}))
		require.NoError(t, p.Pack(nil, nil, nil, nil, nil, 3, nil))
	})
}

// 64 responses of 500 tokens to a prompt of 300 tokens. A single tree would have 32,300 tokens, and its
// mask a billion entries.
func TestARankingIsCut(t *testing.T) {
	rows := make([][]int64, 64)
	for r := range rows {
		for j := range 800 {
			token := int64(j)
			if j >= 300 {
				token = int64(1000*r + j)
			}
			rows[r] = append(rows[r], token)
		}
	}
	m := pack(t, rows, Options{MinShared: 16, Budget: 2048})
	require.Equal(t, [2]int{22, 1800}, [2]int{m.Rows, m.Width}) // three responses per tree
}

func TestErrors(t *testing.T) {
	var p Plan
	ids, lengths := make([]int64, 6), []int64{3, 2}
	require.EqualError(t, p.Arrange(ids[:5], 3, lengths, Options{}), "ids must have 2 rows of 3 tokens, got 5 tokens")
	require.EqualError(t, p.Arrange(ids, 3, []int64{3, 4}, Options{}), "lengths[1] must be in [1, 3], got 4")
	require.EqualError(t, p.Arrange(ids, 3, []int64{0, 1}, Options{}), "lengths[0] must be in [1, 3], got 0")
	require.EqualError(t, p.Arrange(ids, 3, lengths, Options{MinShared: -1}), "min_shared must be at least 0, got -1")
	require.EqualError(t, p.Arrange(ids, 3, lengths, Options{Budget: -2}), "budget must be at least 0, got -2")
	require.NoError(t, p.Arrange(ids, 3, lengths, Options{}))
	x, gather := make([]int64, p.Rows*p.Width), make([]int64, 6)
	require.EqualError(t, p.Pack(x[1:], x, x, gather, ids, 3, lengths), "packed must have 3 elements, got 2")
	require.EqualError(t, p.Pack(x, x, x, gather[1:], ids, 3, lengths), "gather must have 6 elements, got 5")
	require.EqualError(t, p.Pack(x, x, x, gather[:3], ids[:3], 3, lengths[:1]), "lengths must have 2 elements, like the plan, got 1")
	require.EqualError(t, p.Pack(x, x, x, gather, ids, 3, []int64{3, 1}),
		"lengths[0] must be the length that the plan was made for, got 3")
}

func TestNoAllocation(t *testing.T) {
	rows := random(rand.New(rand.NewPCG(5, 6)))
	m := pack(t, rows, Options{})
	require.Zero(t, testing.AllocsPerRun(10, func() {
		if err := m.Arrange(m.ids, m.width, m.lengths, Options{}); err != nil {
			t.Fatal(err)
		}
		if err := m.Pack(m.packed, m.positions, m.ends, m.gather, m.ids, m.width, m.lengths); err != nil {
			t.Fatal(err)
		}
	}))
}

func FuzzPack(f *testing.F) {
	f.Add([]byte("abc|abd|ab|abc"), uint8(1), uint8(0))
	f.Add([]byte("a|aa|aaa|aaaa|b"), uint8(3), uint8(4))
	f.Fuzz(func(t *testing.T, text []byte, least, budget uint8) {
		if len(text) > 200 {
			return
		}
		var rows [][]int64
		row := []int64{}
		for _, c := range append(text, '|') {
			if c != '|' {
				row = append(row, int64(c))
			} else if len(row) > 0 {
				rows = append(rows, row)
				row = nil
			}
		}
		if len(rows) > 0 {
			pack(t, rows, Options{MinShared: int(least), Budget: int(budget)}).check(t, rows)
		}
	})
}

// A batch of eight pairs like those of TL;DR.
func BenchmarkPlan(b *testing.B) {
	g := rand.New(rand.NewPCG(7, 8))
	rows := make([][]int64, 16)
	for r := range rows {
		if r%2 == 0 {
			rows[r] = make([]int64, 305, 341)
			for j := range rows[r] {
				rows[r][j] = g.Int64N(50000)
			}
		} else {
			rows[r] = slices.Clone(rows[r-1][:305])
		}
		for range 36 {
			rows[r] = append(rows[r], g.Int64N(50000))
		}
	}
	m := pack(b, rows, Options{MinShared: 16})
	for b.Loop() {
		_ = m.Arrange(m.ids, m.width, m.lengths, Options{MinShared: 16})
		_ = m.Pack(m.packed, m.positions, m.ends, m.gather, m.ids, m.width, m.lengths)
	}
}

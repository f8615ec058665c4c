package prefix_test

import (
	"fmt"

	"github.com/pcrm-project/pcrm/pcrm/prefix"
)

// Two responses to one prompt. The prompt, tokens 11, 12 and 13, is computed once.
func Example() {
	ids := []int64{
		11, 12, 13, 21, 22,
		11, 12, 13, 31, 0, // padded with 0
	}
	lengths := []int64{5, 4}
	var plan prefix.Plan
	if err := plan.Arrange(ids, 5, lengths, prefix.Options{}); err != nil {
		panic(err)
	}
	size := plan.Rows * plan.Width
	packed, positions, ends := make([]int64, size), make([]int64, size), make([]int64, size)
	gather := make([]int64, len(ids))
	if err := plan.Pack(packed, positions, ends, gather, ids, 5, lengths); err != nil {
		panic(err)
	}
	fmt.Println("tokens   ", packed)
	fmt.Println("positions", positions)
	fmt.Println("ends     ", ends)
	fmt.Println("row 0 at ", gather[:5])
	fmt.Println("row 1 at ", gather[5:])
	// Output:
	// tokens    [11 12 13 21 22 31]
	// positions [0 1 2 3 4 3]
	// ends      [6 6 6 5 5 6]
	// row 0 at  [0 1 2 3 4]
	// row 1 at  [0 1 2 5 5]
}

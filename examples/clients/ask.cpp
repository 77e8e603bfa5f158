// Sends one request to a server: ask ENDPOINT BODY MILLISECONDS
//
// c++ -std=c++17 -o ask ask.cpp -lzmq

#include <iostream>
#include <iterator>
#include <string>
#include <vector>
#include <zmq.hpp>
#include <zmq_addon.hpp>

const std::string MARK = "trioreq-error";  // the first frame of an error reply

// Prints each frame of the reply on a line. Returns 0 for a reply, 1 for an error, 3 for a timeout.
int receive(zmq::socket_t &socket) {
    std::vector<zmq::message_t> frames;
    if (!zmq::recv_multipart(socket, std::back_inserter(frames))) {
        std::cerr << "no reply in time\n";
        return 3;
    }
    bool failed = frames.size() == 3 && frames[0].to_string() == MARK;
    std::ostream &output = failed ? std::cerr : std::cout;
    for (size_t i = failed ? 1 : 0; i < frames.size(); i++) {  // of an error: its code and text
        output << frames[i].to_string() << '\n';
    }
    return failed ? 1 : 0;
}

int main(int count, char *arguments[]) {
    if (count != 4) {
        std::cerr << "usage: " << arguments[0] << " ENDPOINT BODY MILLISECONDS\n";
        return 2;
    }
    const std::string endpoint = arguments[1], body = arguments[2];
    try {
        zmq::context_t context;
        zmq::socket_t socket(context, zmq::socket_type::req);
        socket.set(zmq::sockopt::linger, 0);
        socket.set(zmq::sockopt::rcvtimeo, std::stoi(arguments[3]));
        socket.connect(endpoint);
        socket.send(zmq::buffer(body), zmq::send_flags::none);
        return receive(socket);  // after a timeout the socket closes, which cancels the work
    } catch (const zmq::error_t &error) {
        std::cerr << endpoint << ": " << error.what() << '\n';
        return 2;
    }
}
